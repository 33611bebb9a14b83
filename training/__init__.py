"""Training of labref's networks: from a folder of class folders to a run that `exporters` ships.

A run is one folder, described by its `run.json`. It holds the split, the classifier, the features at the classifier's
break, the VAE, and the figures. Each stage saves its result; a stage that was stopped continues where it stopped.

The rooms, lowest first: settings, config and run; `data` (images), `augmentation`, `networks`, `measure` (figures),
`report` (pages) and `cli` (the command). `tests/test_imports.py` lists what each imports. All import labref, never
`exporters`.
"""
