"""Speech data: audio files, features, synthetic speech and stores of frames."""
