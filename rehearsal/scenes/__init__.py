"""The demo scenarios, one module per system. A further one is a module that offers `Scene`, and a line in SCENES."""

from __future__ import annotations

from rehearsal.scenes.icav2 import ICAv2Scene
from rehearsal.scenes.jgi import JgiScene
from rehearsal.scenes.plates import PlatesScene
from rehearsal.scenes.scene import Scene

SCENES: tuple[type[Scene], ...] = (ICAv2Scene, PlatesScene, JgiScene)
