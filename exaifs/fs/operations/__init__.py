"""What the kernel asks for: names, open files, directories, attributes."""
