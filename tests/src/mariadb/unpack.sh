#!/bin/sh
# Unpacks a package of Debian's newest suite, and the libraries that it needs, into a folder of their own: unpack.sh PACKAGE FOLDER.
#
# MySQL is in no other suite, and its programs need a newer C library than most machines have. They run with the loader that is unpacked
# beside them.
set -eu
package=$1
cd "$2"
mirror() { # mirror [OPTION...]: the address of the mirror that this machine uses
    apt-get "$@" indextargets --format '$(ORIGIN) $(SUITE) $(REPO_URI)' 'Created-By: Packages' |
        sed -n '/^Debian [^ ]*-/d; s/^Debian [^ ]* //p' | head -n 1
}
mirror=$(mirror)
if [ -z "$mirror" ]; then
    # It knows its mirrors only after an update.
    mkdir -p known/partial
    known="-o Dir::State::lists=$PWD/known -o APT::Sandbox::User="
    # shellcheck disable=SC2086 # the options are words
    apt-get $known -qq update && mirror=$(mirror $known)
    rm -rf known
fi
[ -n "$mirror" ] || { echo "apt-get knows no mirror of Debian" >&2; exit 1; }
mkdir -p lists/partial cache
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror sid main" >sources.list
apt() {
    program=$1
    shift
    "$program" -o Dir::Etc::sourcelist="$PWD/sources.list" -o Dir::Etc::sourceparts=- -o Dir::State::lists="$PWD/lists" \
        -o Dir::Cache="$PWD/cache" -o APT::Sandbox::User= -qq "$@"
}
apt apt-get update
# Perl is for scripts that nobody runs here.
needed=$(apt apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances \
    "$package" | grep '^[a-z]' | grep -v '^perl\|^libperl\|^debconf\|:i386$' | sort -u)
# shellcheck disable=SC2086 # the packages are words
apt apt-get download $needed
for file in *.deb; do
    dpkg-deb -x "$file" .
done
rm -rf ./*.deb lists cache sources.list usr/share/doc usr/share/man usr/share/perl
