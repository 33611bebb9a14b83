#!/usr/bin/env bash
# PostgreSQL and pgvector, for the tests of shared references (Debian, as root). The package of pgvector where the
# distribution has one of 0.8 or later; else pgvector is built from Debian's own source package, in a minute.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
install=(apt-get install -y -qq --no-install-recommends)

if ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then
    apt-get update -qq
    "${install[@]}" postgresql-common
    # the tests make clusters of their own: none is made, and none runs, as a service of the system
    sed -i 's/^#\?create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
    "${install[@]}" postgresql
fi
version=$(ls /usr/lib/postgresql | sort -n | tail -1)
control=/usr/share/postgresql/$version/extension/vector.control
has_pgvector() {
    [ -e "$control" ] || return 1
    found=$(sed -n "s/^default_version = '\(.*\)'/\1/p" "$control")
    [ "$(printf '%s\n' 0.8 "$found" | sort -V | head -1)" = 0.8 ]
}
has_pgvector && exit 0
"${install[@]}" "postgresql-$version-pgvector" 2>/dev/null && has_pgvector && exit 0

# a later Debian's source package, from the same mirror, verified with the same keys; apt's own lists stay as they are
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/build"
mirror=$(grep -hEo 'https?://[^ ]*/debian/?( |$)' /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null |
    grep -v snapshot | head -1) || true
[ -n "$mirror" ] || { echo "no mirror of Debian in apt's sources" >&2; exit 1; }
echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >"$work/sources.list"
apt_source=(-o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists="$work/lists"
    -o APT::Sandbox::User=root)
apt-get "${apt_source[@]}" update -qq
[ -n "$(apt-cache madison "postgresql-server-dev-$version")" ] || apt-get update -qq
"${install[@]}" "postgresql-server-dev-$version" build-essential dpkg-dev
(cd "$work/build" && apt-get "${apt_source[@]}" source -qq --download-only pgvector)
mkdir "$work/pgvector"
tar -xf "$work"/build/pgvector_*.orig.tar.* -C "$work/pgvector" --strip-components=1
# no LLVM, which is 100 MB; and for any processor of this kind, since an image may move to another computer
make -s -C "$work/pgvector" -j2 with_llvm=no OPTFLAGS="" PG_CONFIG="/usr/lib/postgresql/$version/bin/pg_config"
make -s -C "$work/pgvector" install with_llvm=no OPTFLAGS="" PG_CONFIG="/usr/lib/postgresql/$version/bin/pg_config"
has_pgvector
