#!/bin/sh
# Prints the tree digest of the folder DIR, as docs/tree-digest.md specifies it; with -l, the
# listing that it is the sha256 of. Needs find, xargs, stat, sha256sum, sort and od (GNU findutils
# and coreutils), awk, and getfattr (attr). Run it as root, or capabilities and what others may not
# read cannot be seen.
#
# A tree in which every time is the constant of what Kiln bakes is listed without times (version 1).
# With -1, any tree is: for a copy that lost its times.
#
#   tree-digest.sh [-l] [-1] DIR
set -eu
LC_ALL=C
export LC_ALL

list=
timeless=
while :; do
    case ${1-} in
    -l) list=1 ;;
    -1) timeless=1 ;;
    *) break ;;
    esac
    shift
done
[ $# -eq 1 ] && [ -d "$1" ] || { echo "usage: tree-digest.sh [-l] [-1] DIR" >&2; exit 2; }
command -v getfattr > /dev/null || { echo "tree-digest.sh: needs getfattr (package attr)" >&2; exit 2; }

work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
trap 'exit 1' HUP INT TERM
cd -- "$1"

# Fields that end in NUL → lines of $1 fields in hex, with tabs between. So no name can be taken
# for the end of one, and lines sort as the bytes do.
records() {
    od -An -v -tx1 | awk -v fields="$1" '
        {
            for (i = 1; i <= NF; i++) {
                if ($i != "00") { line = line $i; continue }
                count++
                if (count < fields) { line = line "\t" } else { print line; line = ""; count = 0 }
            }
        }'
}

find . ! -type s -printf '%P\0%y\0%m\0%U\0%G\0%s\0%D:%i\0%l\0%T@\0' | records 9 |
    sort > "$work/entries"
find . -type f -print0 | xargs -0 -r sha256sum -z -- | records 1 > "$work/contents"
find . \( -type b -o -type c \) -print0 | xargs -0 -r stat --printf '%n\0%t\0%T\0' -- |
    records 3 > "$work/devices"
find . ! -type s -print0 |
    xargs -0 -r getfattr -h -d -e hex -m '^(user\.|security\.capability$)' --absolute-names -- \
    > "$work/attributes"

awk -v work="$work" -v timeless="$timeless" '
    BEGIN {
        epoch = "1577836800"
        for (i = 0; i < 256; i++) {
            hex = sprintf("%02x", i)
            char[hex] = sprintf("%c", i)
            code[char[hex]] = hex
            plain = i > 32 && i < 127 && index("#=\\*?[", char[hex]) == 0
            escape[hex] = plain ? char[hex] : sprintf("\\%03o", i)
        }
        name["66"] = "file"; name["64"] = "dir"; name["6c"] = "link"
        name["70"] = "fifo"; name["63"] = "char"; name["62"] = "block"
        FS = "\t"

        # 64 digits, two blanks, "./" and the path.
        while ((getline < (work "/contents")) > 0)
            digest[substr($0, 137)] = text(substr($0, 1, 128))
        while ((getline < (work "/devices")) > 0)
            device[substr($1, 5)] = number(text($2)) "," number(text($3))
        while ((getline line < (work "/attributes")) > 0)
            attribute(line)
    }
    # Hex → what it stands for, of plain characters.
    function text(hex,    i, out) {
        for (i = 1; i < length(hex); i += 2) out = out char[substr(hex, i, 2)]
        return out
    }
    # Hex → escaped.
    function escaped(hex,    i, out) {
        for (i = 1; i < length(hex); i += 2) out = out escape[substr(hex, i, 2)]
        return out
    }
    # Seconds with a fraction → whole ones.
    function seconds(hex,    out) {
        out = text(hex)
        sub(/\..*/, "", out)
        return out
    }
    function number(digits,    i, out) {
        for (i = 1; i <= length(digits); i++)
            out = out * 16 + index("0123456789abcdef", substr(digits, i, 1)) - 1
        return out + 0
    }
    # As getfattr writes names, with \ooo for some → hex.
    function bytes(quoted,    i, c, out) {
        for (i = 1; i <= length(quoted); i++) {
            c = substr(quoted, i, 1)
            if (c == "\\") {
                out = out sprintf("%02x", substr(quoted, i + 1, 1) * 64 \
                    + substr(quoted, i + 2, 1) * 8 + substr(quoted, i + 3, 1))
                i += 3
            } else {
                out = out code[c]
            }
        }
        return out
    }
    function attribute(line,    at, key, value) {
        if (line ~ /^# file: /) {
            file = bytes(substr(line, 9))
            sub(/^2e2f/, "", file)
            if (file == "2e") file = ""
        } else if (line != "") {
            at = index(line, "=")
            key = bytes(at ? substr(line, 1, at - 1) : line)
            value = at ? substr(line, at + 3) : ""
            count[file]++
            keys[file, count[file]] = key
            values[file, key] = value
        }
    }
    function attributes(path,    i, j, n, held, out) {
        n = count[path]
        for (i = 2; i <= n; i++) {
            held = keys[path, i]
            for (j = i - 1; j > 0 && keys[path, j] "" > held ""; j--)
                keys[path, j + 1] = keys[path, j]
            keys[path, j + 1] = held
        }
        for (i = 1; i <= n; i++)
            out = out " xattr." escaped(keys[path, i]) "=" values[path, keys[path, i]]
        return out
    }
    BEGIN {
        while (!timeless && (getline < (work "/entries")) > 0)
            if (seconds($9) != epoch) times = 1
        close(work "/entries")
        print times ? "#mtree 2" : "#mtree"
        while ((getline < (work "/entries")) > 0) {
            path = $1
            kind = name[$2]
            mode = substr("000" text($3), length(text($3)))
            line = (path == "" ? "." : "./" escaped(path)) " type=" kind " mode=" mode
            line = line " uid=" text($4) " gid=" text($5)
            if (times) line = line " time=" seconds($9) ".000000000"
            inode = $7
            own = path
            if (kind == "file" && (inode in first)) {
                line = line " hardlink=./" escaped(first[inode])
                own = first[inode]
            } else if (kind == "file") {
                first[inode] = path
                line = line " size=" text($6) " sha256digest=" digest[path]
            } else if (kind == "link") {
                line = line " link=" escaped($8)
            } else if (kind == "char" || kind == "block") {
                line = line " device=linux," device[path]
            }
            print line attributes(own)
        }
    }' > "$work/listing"

if [ -n "$list" ]; then
    cat "$work/listing"
else
    printf 'sha256:%s\n' "$(sha256sum < "$work/listing" | cut -c 1-64)"
fi
