"""Reads manifests, holds each against the schemas of these versions of Kubernetes, and writes them as JSON."""

import json
import sys

import kubernetes_validate
import yaml

documents = [document for document in yaml.safe_load_all(sys.stdin) if document]
for document in documents:
    # Of the Prometheus operator and Argo: not Kubernetes' own.
    if document["apiVersion"].startswith(("monitoring.coreos.com/", "argoproj.io/")):
        continue
    for version in sys.argv[1:]:
        kubernetes_validate.validate(document, version, strict=True)
json.dump(documents, sys.stdout)
