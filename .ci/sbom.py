"""The bill of materials of a release: python .ci/sbom.py FOUND DIST OUT.

FOUND is what cyclonedx-py found where the wheel was run. There the release is a component
among others, with the path that it was installed from. In OUT it is the subject, with the files of DIST and
their digests; pip, which only installed, is left out. The result is checked against CycloneDX's schema.
"""

from __future__ import annotations

import hashlib
import json
import sys
import uuid
from pathlib import Path
from typing import Any

NAME = "alphadecay-dist"
INSTALLERS = {"pip"}


def of_release(found: dict[str, Any], dist: Path) -> dict[str, Any]:
    """The bill of materials whose subject is the release.

    Args:
        found: that of the environment.
        dist: has the files that are released.
    """
    (own,) = (component for component in found["components"] if component["name"] == NAME)
    own["purl"] = f"pkg:pypi/{NAME}@{own['version']}"
    own["externalReferences"] = [
        {
            "type": "distribution",
            "url": path.name,
            "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(path.read_bytes()).hexdigest()}],
        }
        for path in sorted(dist.iterdir())
    ]
    left_out = {part["bom-ref"] for part in found["components"] if part["name"] in INSTALLERS}
    parts = [part for part in found["components"] if part is not own and part["bom-ref"] not in left_out]
    needs = [need for need in found["dependencies"] if need["ref"] not in left_out]
    metadata = {**found["metadata"], "component": own}
    bom = {**found, "metadata": metadata, "components": parts, "dependencies": needs}
    content = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(bom, sort_keys=True))
    return {**bom, "serialNumber": f"urn:uuid:{content}"}  # attest-sbom takes none without it


def main() -> None:
    """Check it, and write it."""
    from cyclonedx.schema import SchemaVersion  # noqa: PLC0415  (tests import this without it)
    from cyclonedx.validation.json import JsonStrictValidator  # noqa: PLC0415

    found, dist, out = map(Path, sys.argv[1:])
    bom = of_release(json.loads(found.read_text(encoding="utf-8")), dist)
    text = json.dumps(bom, indent=2, sort_keys=True)
    fault = JsonStrictValidator(SchemaVersion.from_version(bom["specVersion"])).validate_str(text)
    if fault is not None:
        sys.exit(f"{out}: is no valid CycloneDX: {fault}")
    out.write_text(f"{text}\n", encoding="utf-8")
    print(f"{out}: {len(bom['components'])} components")


if __name__ == "__main__":
    main()
