"""Raw downloads and images of one's own, brought into the layout that dataset.index reads."""
