"""XCiT, complete on current PyTorch."""
