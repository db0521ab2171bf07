"""Cases for every verifier, with oracles that judge by other roads, and the commands that go through them."""
