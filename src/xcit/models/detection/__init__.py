"""Mask R-CNN with an XCiT as backbone. Nothing is imported here, because importing torchvision takes seconds."""
