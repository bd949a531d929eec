"""One image: opened, resized, cropped, normalised."""
