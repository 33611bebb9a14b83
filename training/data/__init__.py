"""The images of a run: class folders, splits, cached crops, the hierarchy of classes, and which images show one cell.

Imports labref only, and no network.
"""
