# shellcheck shell=sh disable=SC2034
# What the scripts of the room have in common: places, the numbers of people's accounts, and how an account is made.
SETTINGS=/etc/workshop-room
STATE=/var/lib/workshop-room
RUN=/run/workshop-room # in memory: a full disk must not stop a log-in
FIRST_UID=20000 LAST_UID=20999
PATH=/opt/workshop/.venv/bin:$PATH:/usr/sbin:/sbin

setting() { python3 -Ic 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$SETTINGS/room.json" "$1"; }

# No sub-ids: with them a person would run programs under numbers that no rule knows.
make_account() {
  useradd --create-home --shell /bin/bash --groups workshop-room --key HOME_MODE=0700 --key UID_MIN=$FIRST_UID \
    --key UID_MAX=$LAST_UID --key SUB_UID_COUNT=0 --key SUB_GID_COUNT=0 "$1"
}

# A file for each 16 KiB, as a file system of ext4 has them.
limit_disk() {
  size=$(setting disk) place=$(findmnt -no TARGET -T /home)
  if quotaon -pu "$place" 2>/dev/null | grep -q "is on"; then # without --disk a quota of before ends
    size=$(($(numfmt --from=iec "${size:-0}") / 1024))
    setquota -u "$1" 0 "$size" 0 $((size / 16)) "$place"
  fi
}
