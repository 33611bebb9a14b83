"""What the store keeps in memory: ids and labels, fingerprints, the index of latents, places on maps. Knows no SQL.

May import words.
"""
