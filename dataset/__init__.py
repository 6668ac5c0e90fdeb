"""From list files to episodes to tensors."""
