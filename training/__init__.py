"""Training of labref's networks: from a folder of class folders to a run that `exporters` ships.

A run is one folder, described by its `run.json`: the split, the classifier, the features at its break, the VAE, the
figures. Every stage is written down when it ends and goes on where it was stopped.

The rooms, lowest first: settings, config and run; `data` (images), `augmentation`, `networks`, `measure` (figures),
`report` (pages) and `cli` (the command). `tests/test_imports.py` lists what each imports. All import labref, never
`exporters`.
"""
