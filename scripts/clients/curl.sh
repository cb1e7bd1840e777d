#!/bin/sh
# curl, as a client of `make clients`: commands come in as python/wire.py says, with the JSON-RPC text itself as `body`,
# since what a shell passes on is text.
url=$1
body=$(mktemp) answer=$(mktemp)
trap 'rm -f "$body" "$answer"' EXIT
how() {
  # how:
  curl -s "$url" -H 'Content-Type: application/json' -d '{"jsonrpc":"2.0","id":1,"method":"raft_leader","params":{"verify":true}}'
  # end
}
echo '{"ready":true}'
while read -r line; do
  if [ "$(printf '%s' "$line" | jq -r .do)" = how ]; then
    printf '{"status":200,"answer":%s}\n' "$(how)"
    continue
  fi
  printf '%s' "$line" | jq -j .body >"$body"
  to=$(printf '%s' "$line" | jq -r --arg url "$url" '.url // $url')
  status=$(curl -s -m 20 -o "$answer" -w '%{http_code}' "$to" -H 'Content-Type: application/json' --data-binary "@$body")
  if head -c 1 "$answer" | grep -q '[[{]'; then
    printf '{"status":%s,"answer":%s}\n' "$(expr "$status" + 0)" "$(tr -d '\n' <"$answer")"
  else
    printf '{"status":%s,"answer":%s}\n' "$(expr "$status" + 0)" "$(jq -Rs . <"$answer")"
  fi
done
