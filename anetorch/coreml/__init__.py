"""Core ML models anywhere: load, predict, and the seam into coremltools.

:func:`load` takes what Core ML's tools write (``.mlpackage``, ``.mlmodelc``, ``.mlmodel``
holding an ML Program) and ``.mil`` texts. :func:`install` lets a script that calls
coremltools' ``MLModel.predict`` run unchanged on machines without Core ML.
"""

from anetorch.coreml.feature import Feature
from anetorch.coreml.files import read
from anetorch.coreml.model import Model, State, load
from anetorch.coreml.seam import install, uninstall

__all__ = ["Feature", "Model", "State", "install", "load", "read", "uninstall"]
