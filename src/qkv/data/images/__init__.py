"""Image data: sources, preprocessing, augmentation and stores of pixels."""
