# What the package must do: `sh -eu packaging/check.sh ROOT DEB`, in mount, network and process namespaces of its own,
# where ROOT is a clean Debian. `cargo xtask dist --check` runs it.

root=$1
deb=$2

fail() {
    echo "error: $*" >&2
    exit 1
}

environment="/usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
inside() {
    chroot "$root" $environment "$@"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Every file, but what dpkg and its helpers note about all packages.
files() {
    (cd "$root" && find . -xdev \( -path ./proc -o -path ./sys \) -prune -o -print) |
        grep -v -e '^./var/lib/dpkg' -e '^./var/log/' -e '^./var/cache/' -e '^./etc/alternatives$' | sort
}

mount --make-rprivate /
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t bpf bpf "$root/sys/fs/bpf"
cp "$deb" "$root/tmp/lvs-xdp.deb"
files >"$work/before"

echo "installing it"
inside dpkg --install /tmp/lvs-xdp.deb
inside lvs-xdp --version
inside ipvsadm --version
for file in \
    usr/share/man/man1/lvs-xdp.1.gz usr/share/man/man1/lvs-xdp-agent.1.gz \
    usr/share/bash-completion/completions/lvs-xdp usr/share/zsh/vendor-completions/_lvs-xdp \
    usr/share/fish/vendor_completions.d/lvs-xdp.fish usr/share/doc/lvs-xdp/copyright \
    usr/share/doc/lvs-xdp/changelog.Debian.gz usr/share/doc/lvs-xdp/lvs-xdp.cdx.json \
    usr/share/doc/lvs-xdp/lvs-xdp-ebpf.cdx.json \
    etc/default/lvs-xdp usr/sbin/ipvsadm-save usr/sbin/ipvsadm-restore; do
    [ -e "$root/$file" ] || [ -L "$root/$file" ] || fail "$file is not there"
done
for unit in lvs-xdp lvs-xdp-realserver; do
    [ -e "$root/lib/systemd/system/$unit.service" ] || fail "the unit $unit is not there"
done
inside sh -c 'ldd /usr/sbin/lvs-xdp 2>&1 || true' | grep -q 'not a dynamic\|statically' || fail "it is not static"

echo "running it"
ip link add eth0 type veth peer name eth1
ip address add 192.0.2.200/24 dev eth0
ip address add 192.0.2.100/32 dev eth0
ip link set eth0 up
ip link set eth1 up
start() {
    # No function: it would be another process that is waited for.
    chroot "$root" $environment lvs-xdp agent --interface eth0 --connections 4096 2>>"$work/log" &
    agent=$!
    for _ in $(seq 200); do
        if inside lvs-xdp status >/dev/null 2>&1; then return; fi
        sleep 0.05
    done
    cat "$work/log" >&2
    fail "the agent does not answer"
}
start
inside ipvsadm -A -t 192.0.2.100:80 -s rr
inside ipvsadm -a -t 192.0.2.100:80 -r 192.0.2.210:80 -g
inside ipvsadm-save -n >"$work/saved"
grep -q -e '-a -t 192.0.2.100:80 -r 192.0.2.210:80 -g' "$work/saved" || fail "the service is not there"

echo "upgrading it"
echo '# mine' >>"$root/etc/default/lvs-xdp"
inside dpkg --install /tmp/lvs-xdp.deb
grep -q '^# mine' "$root/etc/default/lvs-xdp" || fail "the upgrade has replaced what was configured"
ip -details link show dev eth0 | grep -q prog/xdp || fail "the upgrade has ended forwarding"
kill "$agent"
wait "$agent" || fail "the agent has not ended well"
start
inside ipvsadm-save -n | cmp - "$work/saved" || fail "the next agent has not what the last one had"
kill "$agent"
wait "$agent" || fail "the agent has not ended well"

echo "purging it"
inside dpkg --remove lvs-xdp
if ip -details link show dev eth0 | grep -q prog/xdp; then fail "the program is still there"; fi
[ -e "$root/var/lib/lvs-xdp/state" ] || fail "removing it has removed what was configured"
inside dpkg --purge lvs-xdp
files >"$work/after"
diff "$work/before" "$work/after" || fail "that is what purging it has left (>) or removed (<)"
echo "the package does what it shall"
