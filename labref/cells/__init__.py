"""What one picture says about its cell: decoding, the crop, hashes, landmarks, optics; and when two pictures show the
same cell. May import words and errors."""
