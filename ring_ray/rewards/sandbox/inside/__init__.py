"""What runs inside bubblewrap: the standard library only, since nothing else is mounted there."""
