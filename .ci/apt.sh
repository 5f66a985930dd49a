#!/usr/bin/env bash
# Install Debian packages that are missing, where we may: as root, or by passwordless sudo.
# Elsewhere say what is missing and go on: the tests that need it are skipped with that reason.
set -euo pipefail
missing=()
for package in "$@"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" = 0 ]; then run=(env)
elif sudo -n true 2>/dev/null; then run=(sudo -n env)
else echo "not installed and no right to install: ${missing[*]}" >&2; exit 0; fi
"${run[@]}" apt-get update -qq
# In runlevel 1 no package starts its service: the tests start daemons of their own.
"${run[@]}" RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
