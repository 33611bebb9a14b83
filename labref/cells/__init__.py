"""A cell and what its picture says: decoding, the crop, hashes, landmarks, optics, and when two are the same. May
import words and errors."""
