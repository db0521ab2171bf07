#!/bin/sh
# Install what pip can't, from Debian's packages; without the right to install, say what is missing.
set -eu
need() { # commands of which one is enough, the package that has it, who needs it
    for name in $1; do command -v "$name" >/dev/null && return; done
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing Debian's $2"
        apt-get update -qq >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$2" >/dev/null
    else
        echo "$3 needs one of the commands '$1': apt install $2" >&2
        exit 1
    fi
}
case "$1" in
setup)
    need cc gcc "one of reasoning-gym's requirements, which has no wheel,"
    (need bwrap bubblewrap "the sandbox that judges code") || echo "going on: until it is there no code is judged" >&2
    ;;
test)
    need "chromium chromium-browser google-chrome" chromium "the test that renders a report in a browser"
    need bwrap bubblewrap "the tests of the sandbox"
    need g++ g++ "the tests of the sandbox"
    need javac default-jdk-headless "the tests of the sandbox"
    ;;
esac
