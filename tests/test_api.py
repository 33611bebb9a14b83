"""What the agent answers over HTTP, and that its OpenAPI document and the models of `labref.operations` are true."""

from __future__ import annotations

import hashlib
import http.client
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Union

import pytest
import schemathesis
from openapi_spec_validator import OpenAPIV31SpecValidator, validate
from pydantic import TypeAdapter

from labref.bundles.bundle import Bundle
from labref.cli import app as command
from labref.lab import Lab
from labref.operations import Operation, every_operation, find_operation
from labref.web.client import read_agent_record
from labref.web.desk import Desk
from tests.bundles import other_bundle
from tests.labs import make_lab, once, running_agent

OPERATIONS = {operation.name: operation for operation in every_operation()}


@cache
def rows_of(operation: Operation) -> TypeAdapter[Any]:
    return TypeAdapter(Union[operation.answers])
