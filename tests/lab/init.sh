#!/bin/busybox sh
# The only program of the lab's guest besides qemu-ga. It speaks to the tests by lines on the
# serial console: LAB-READY, LAB-TICK n, LAB-FAILED reason.
/bin/busybox mkdir -p /proc /sys /dev /run /tmp /mnt /var
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/sbin:/usr/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
ln -s /run /var/run

# A file of names, since the right order depends on the kernel the image was built with.
while read -r module; do
    insmod "/lib/modules/$module" || echo "LAB-FAILED insmod $module"
done < /lib/modules/order

has_filesystem() { [ "$(dd if="$1" bs=1 skip=1080 count=2 2>/dev/null | od -An -tx1)" = " 53 ef" ]; }

make_filesystem() {
    if [ -x /sbin/mke2fs ]; then
        # Nothing lazy: a guest told not to write must leave its disks alone.
        /sbin/mke2fs -q -F -t ext4 -m 0 -E lazy_itable_init=0,lazy_journal_init=0 "$1"
    else
        mkfs.ext2 -m 0 "$1" >/dev/null
    fi
}

# SCSI disks come up in the background, so the command line says how many disks to wait for.
count_disks() { ls -d /sys/block/vd* /sys/block/sd* 2>/dev/null | wc -l; }
wanted=$(sed -n 's/.*lab\.disks=\([0-9]*\).*/\1/p' /proc/cmdline)
tries=100
while [ "$(count_disks)" -lt "${wanted:-0}" ] && [ $tries -gt 0 ]; do
    tries=$((tries - 1))
    sleep 0.1
done
[ $tries -gt 0 ] || echo "LAB-FAILED found $(count_disks) of $wanted disks"

mounts=""
for sys in /sys/block/vd* /sys/block/sd*; do
    [ -e "$sys" ] || continue
    name=${sys##*/}
    mkdir -p "/mnt/$name"
    if [ "$(cat "$sys/ro")" = 1 ]; then
        mount -o ro,noload "/dev/$name" "/mnt/$name" 2>/dev/null
        continue
    fi
    if ! has_filesystem "/dev/$name"; then
        make_filesystem "/dev/$name" || echo "LAB-FAILED mkfs $name"
    fi
    if mount -t ext4 -o noatime "/dev/$name" "/mnt/$name"; then
        mounts="$mounts /mnt/$name"
    else
        echo "LAB-FAILED mount $name"
    fi
done
sync

agent=org.qemu.guest_agent.0
for port in /sys/class/virtio-ports/*; do
    [ "$(cat "$port/name" 2>/dev/null)" = "$agent" ] || continue
    mkdir -p /dev/virtio-ports
    ln -s "/dev/${port##*/}" "/dev/virtio-ports/$agent"
    /usr/sbin/qemu-ga -m virtio-serial -p "/dev/virtio-ports/$agent" -t /run &
done

echo "LAB-READY"

# About 1 MiB a tick over all disks, in 16 rotating files a disk: never more than 20 MiB on one.
write_some() {
    mount=$1 blocks=$2 slot=$(($3 % 16))
    case $(($3 % 3)) in
        0) options="" ;;                                # a file of new content, cut to size
        1) options="conv=notrunc seek=$(($3 % 64))" ;;  # overwrites the middle of an old one
        2) options="" ; rm -f "$mount/file$((($3 + 5) % 16))" ;;
    esac
    dd if=/dev/urandom of="$mount/file$slot" bs=4k count="$blocks" $options 2>/dev/null
    echo "$3" > "$mount/tick"
}

if grep -q 'lab\.writer=1' /proc/cmdline && [ -n "$mounts" ]; then
    set -- $mounts
    blocks=$((256 / $#))
    tick=0
    while true; do
        tick=$((tick + 1))
        for mount in $mounts; do write_some "$mount" "$blocks" "$tick"; done
        sync
        if [ $((tick % 20)) = 0 ]; then
            for mount in $mounts; do fstrim "$mount" 2>/dev/null; done
        fi
        echo "LAB-TICK $tick"
        sleep 0.5
    done
fi
while true; do sleep 3600; done
