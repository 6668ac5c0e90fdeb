"""Raw downloads and pictures of one's own, brought into the layout that dataset.index reads."""
