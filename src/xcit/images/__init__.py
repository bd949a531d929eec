"""Opens, resizes, crops and normalises one image."""
