"""How the rows of a batch are laid out for a forward pass, and how attention keeps them apart."""
