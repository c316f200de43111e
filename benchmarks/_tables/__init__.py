"""Tables of the documentation and of the terminal, made from committed results."""
