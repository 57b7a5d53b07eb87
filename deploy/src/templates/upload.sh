#!/usr/bin/env bash
# Uploads the site to a bucket: ./upload.sh s3://BUCKET [CLOUDFRONT_DISTRIBUTION]. Written by `fledgling deploy static` ({{ version }}).
set -euo pipefail
cd "$(dirname "$0")/site"
bucket=${1:?"give the bucket, s3://BUCKET"}
# The model first: the page that names it comes when it is there.
aws s3 cp models/{{ model }} "$bucket/models/{{ model }}" --cache-control "{{ for_ever }}" --content-type application/octet-stream
aws s3 sync . "$bucket" --exclude 'models/*' --exclude _headers --exclude '*.wasm' --cache-control {{ checked }}
aws s3 sync . "$bucket" --exclude '*' --include '*.wasm' --cache-control {{ checked }} --content-type application/wasm
if [ -n "${2:-}" ]; then
  aws cloudfront create-invalidation --distribution-id "$2" --paths '/index.html' '/models.json'
fi
# Once, for the headers that let the page use threads; then choose the policy in the distribution's behaviour:
#   aws cloudfront create-response-headers-policy --response-headers-policy-config file://cloudfront.json
