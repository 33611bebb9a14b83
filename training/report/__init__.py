"""What a run shows people: pictures, the report with its page, and the sheet that asks a person about triplets.

Imports `training.measure`, `training.networks`, the run and its settings.
"""
