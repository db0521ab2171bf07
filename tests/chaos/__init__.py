"""Runs whose processes are killed, and what shows that nothing was lost. Each command is a module of this package."""
