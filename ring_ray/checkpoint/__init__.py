"""What a run leaves behind to go on from: the state of its policy, its rollouts and its loop, in files."""
