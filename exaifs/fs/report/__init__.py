"""What the daemon says about itself, and the hidden `.exaifs/` that shows it."""
