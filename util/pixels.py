"""What the values of a mask mean, for rooms that never open a picture."""

IGNORE = 255  # pixels that count neither as object nor as background
