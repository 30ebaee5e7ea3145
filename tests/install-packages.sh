#!/bin/sh
# Installs the system packages that tests need, where root may and apt is there. Quick when they are installed.
set -e
export PATH="$PATH:/usr/sbin"
command -v nginx >/dev/null && command -v openssl >/dev/null && exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "nginx or openssl is not installed: the tests that need it are skipped." >&2
    exit 0
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nginx-light openssl >/dev/null
