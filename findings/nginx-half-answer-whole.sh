#!/usr/bin/env bash
# nginx 1.22.1 with `proxy_pass` alone makes a whole answer of half of one: when the server behind it dies, the client
# is told a proper end.
#
# RFC 9112, 8: an answer that is cut off is incomplete, and a client can tell by the last chunk that did not come. nginx
# asks in HTTP/1.0 unless it is told otherwise; to such a request a server's answer of unknown length ends with its
# connection, so nginx takes the death of the server for the end, and writes the last chunk itself. With
# `proxy_http_version 1.1` the answer comes in chunks, and nginx breaks its own off. Output seen with Debian's
# nginx 1.22.1-9+deb12u11, for a server that exits after the first of its lines:
#
#   proxy_pass alone             asked in HTTP/1.0   'line 1\n' and a proper end
#   with proxy_http_version 1.1  asked in HTTP/1.1   'line 1\n' and broken off
#
# Whoever follows an endless stream through such a proxy can not tell a crash from a goodbye; blockraft's feeds say
# goodbye by an item of their own, and its documentation gives the line. Fails when the server no longer does this.
set -euo pipefail
version=1.22.1-9+deb12u11
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
# Downloaded and unpacked, not installed: the package would start a server. apt drops its privileges.
chmod 755 "$dir"
(cd "$dir" && { apt-get download "nginx=$version" || { apt-get update -qq && apt-get download "nginx=$version"; }; } >/dev/null 2>&1 &&
  dpkg-deb -x nginx_*.deb .)
cat >"$dir/try.py" <<'PY'
import http.client
import os
import pathlib
import socket
import subprocess
import sys
import time

FOLDER, NGINX = pathlib.Path(sys.argv[1]), sys.argv[2]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n"


def serve(listener):
    """Answers one request as its version asks for, writes a line of an endless answer, and dies."""
    client, _ = listener.accept()
    request = b""
    while b"\r\n\r\n" not in request:
        request += client.recv(4096)
    is_old = b"HTTP/1.0" in request.split(b"\r\n")[0]
    client.sendall(HEAD + (b"\r\nline 1\n" if is_old else b"Transfer-Encoding: chunked\r\n\r\n7\r\nline 1\n\r\n"))
    print("HTTP/1.0" if is_old else "HTTP/1.1", flush=True)
    os._exit(9)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def try_with(more):
    listener, port = socket.create_server(("127.0.0.1", 0)), free_port()
    temps = "".join(f"{d}_temp_path {FOLDER}/{d};" for d in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    config = FOLDER / "nginx.conf"
    config.write_text(f"""daemon off; master_process off; pid {FOLDER}/pid; error_log {FOLDER}/error.log;
events {{}}
http {{ access_log off; {temps}
  server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://127.0.0.1:{listener.getsockname()[1]}; {more} }} }} }}
""")
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.dup2(writer, 1)
        serve(listener)
    os.close(writer)
    listener.close()
    nginx = subprocess.Popen([NGINX, "-e", f"{FOLDER}/error.log", "-p", str(FOLDER), "-c", str(config)])
    try:
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.05)
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        client.request("GET", "/")
        try:
            text, end = client.getresponse().read(), "a proper end"
        except http.client.IncompleteRead as e:
            text, end = e.partial, "broken off"
    finally:
        nginx.kill()
        nginx.wait()
        os.wait()
    return os.read(reader, 100).decode().strip(), text.decode(), end


plain, told = try_with(""), try_with("proxy_http_version 1.1;")
for name, (asked, text, end) in (("proxy_pass alone", plain), ("with proxy_http_version 1.1", told)):
    print(f"{name:28} asked in {asked}   {text!r} and {end}")
if plain != ("HTTP/1.0", "line 1\n", "a proper end") or told != ("HTTP/1.1", "line 1\n", "broken off"):
    raise SystemExit("finding no longer holds: a dead server is passed on as it is, or never")
PY
python3 "$dir/try.py" "$dir" "$dir/usr/sbin/nginx"
echo "finding holds: nginx 1.22.1 with proxy_pass alone passes half an answer on as a whole one"
