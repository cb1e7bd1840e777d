"""What the boards are made of: the shipped alert rules, panels that draw them, and Grafana's JSON.

Standard library only. A panel that names an alert quotes both sides of its comparison; `Rules.quote` refuses a
quotation that is not in the rule, so a board can not draw something else than what fires.
"""

import re

JOIN = "* on (job, instance) group_left (cluster_id, node_id) blockraft_node_info"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
# A quoted comparison may match vectors.
MATCHING = r"(?: on \([^)]*\)(?: group_left \([^)]*\))?)?"
RED, AMBER, GREEN, BLUE, GREY, PURPLE = "red", "orange", "green", "blue", "#808080", "purple"


class Wrong(Exception):
    """A board says something that is not so."""


def squeeze(text):
    return " ".join(text.split())


class Rules:
    """alerts.yml, read line by line: the file keeps one shape, and anything else is refused."""

    def __init__(self, text):
        self.alerts, self.severity, self.records, self.drawn = {}, {}, set(), set()
        name, expr, is_alert = None, None, False
        for line in text.splitlines():
            if m := re.match(r"  - (alert|record): (\S+)$", line):
                is_alert, name, expr = m[1] == "alert", m[2], None
                if is_alert:
                    self.alerts[name] = ""
                else:
                    self.records.add(name)
            elif m := re.match(r"    labels: \{severity: (\w+)\}$", line):
                self.severity[name] = m[1]
            elif line == "    expr: |-":
                expr = []
            elif expr is not None and line.startswith("      "):
                expr.append(line)
                if is_alert:
                    self.alerts[name] = squeeze(" ".join(expr))
            else:
                expr = None
        if not self.alerts or not all(self.alerts.values()):
            raise Wrong("alerts.yml has an alert whose expression could not be read")

    def quote(self, alert, left, comparison, right):
        name = "Blockraft" + alert
        if name not in self.alerts:
            raise Wrong(f"there is no alert {name}")
        words = f"{re.escape(left)} {comparison}{MATCHING} {re.escape(right)}"
        if not re.search(words, self.alerts[name]):
            raise Wrong(f"{name} does not say `{left} {comparison} {right}`: {self.alerts[name]}")
        self.drawn.add(name)

    def mention(self, alert):
        if "Blockraft" + alert not in self.alerts:
            raise Wrong(f"there is no alert Blockraft{alert}")
        self.drawn.add("Blockraft" + alert)


def window(expr):
    """A rate is taken over the panel's own window; a count over the alert's."""
    return re.sub(r"(rate\([^\[()]*)\[\w+\]", r"\1[$__rate_interval]", expr)


def by_node(expr):
    """Each node's series of the chosen cluster, with the node's name."""
    scope = 'blockraft_node_info{cluster_id="$cluster", instance=~"$instance"}'
    return f"({window(expr)}) * on (job, instance) group_left (cluster_id, node_id, node_name) {scope}"


def by_cluster(expr):
    """An expression that aggregates by cluster_id, of the chosen cluster alone."""
    expr = re.sub(r"blockraft_node_info\b(?!\{)", 'blockraft_node_info{cluster_id="$cluster"}', window(expr))
    return re.sub(r"(cluster:\w+:\w+)(?!\{)\b", r'\1{cluster_id="$cluster"}', expr)


def summed(expr, *labels):
    """Over the chosen nodes."""
    scope = 'blockraft_node_info{cluster_id="$cluster", instance=~"$instance"}'
    by = f"by ({', '.join(labels)}) " if labels else ""
    return f"sum {by}({window(expr)} * on (job, instance) group_left (node_name) {scope})"


def quantile(q, family, *labels, where=""):
    """Of a histogram, by the given labels over the chosen nodes."""
    inner = summed(f"rate({family}_bucket{where}[$__rate_interval])", "le", *labels)
    return f"histogram_quantile({q}, {inner})"


def quantile_ever(q, family, *labels, where=""):
    """Since the processes started. For what is rare: a rate does not see what came before the first scrape."""
    return f"histogram_quantile({q}, {summed(f'{family}_bucket{where}', 'le', *labels)})"


class Panel:
    """One panel. `queries` are (expression, legend[, more]); `alerts` are (name, left, comparison, right) or a name alone."""

    def __init__(self, title, unit, what, normal, queries=(), alerts=(), kind="timeseries", w=8, h=8, **more):
        self.title, self.unit, self.what, self.normal = title, unit, what, normal
        self.queries, self.alerts, self.kind, self.w, self.h, self.more = list(queries), list(alerts), kind, w, h, more

    def json(self, rules, ident, x, y):
        says = [self.what, f"**Normal:** {self.normal}"]
        limits, lines = [], []
        for alert in self.alerts:
            if isinstance(alert, str):
                rules.mention(alert)
                says.append(f"**Alert:** Blockraft{alert} uses it.")
                continue
            name, left, comparison, right = alert
            rules.quote(name, left, comparison, right)
            severity = rules.severity["Blockraft" + name]
            says.append(f"**Alert:** Blockraft{name} ({severity}): `{left} {comparison} {right}`.")
            try:
                lines.append((float(right), RED if severity == "critical" else AMBER))
            except ValueError:
                limits.append((right, name))
        says.append("")
        runbooks = sorted({a if isinstance(a, str) else a[0] for a in self.alerts})
        if runbooks:
            says[-1] = "Runbooks: " + ", ".join(f"dashboards/runbooks/Blockraft{r}.md" for r in runbooks)
        targets = [target(i, *q) for i, q in enumerate(self.queries)]
        for right, name in limits:
            legend = f"limit of {name}"
            expr = by_cluster(right) if "cluster_id" in right or "cluster:" in right else f"max ({by_node(right)})"
            targets.append(target(len(targets), expr, legend))
        out = {
            "id": ident,
            "title": self.title,
            "description": "\n\n".join(s for s in says if s),
            "type": self.kind,
            "datasource": SOURCE,
            "gridPos": {"x": x, "y": y, "w": self.w, "h": self.h},
            "targets": targets,
        }
        shape(out, self, lines)
        return out


def target(i, expr, legend="{{node_name}}", more=None):
    more = more or {}
    out = {"refId": chr(ord("A") + i), "datasource": SOURCE, "expr": expr, "legendFormat": legend}
    out["instant" if more.get("instant") else "range"] = True
    if more.get("exemplar"):
        out["exemplar"] = True
    if "format" in more:
        out["format"] = more["format"]
    return out


def shape(out, panel, lines):
    """What the kind of panel wants beside its queries."""
    kind, more = panel.kind, panel.more
    steps = [{"color": more.get("base", GREEN), "value": None}]
    if panel.kind in ("timeseries", "stat") and lines and not more.get("below"):
        steps += [{"color": color, "value": value} for value, color in sorted(lines)]
    elif more.get("below") is not None:
        # Bad is below: red up to the value.
        steps = [{"color": more.get("bad", RED), "value": None}, {"color": GREEN, "value": more["below"]}]
    defaults = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}}
    if "min" in more:
        defaults["min"] = more["min"]
    if "max" in more:
        defaults["max"] = more["max"]
    if "decimals" in more:
        defaults["decimals"] = more["decimals"]
    if "map" in more:
        options = {str(k): {"text": text, "color": color, "index": i} for i, (k, (text, color)) in enumerate(more["map"].items())}
        defaults["mappings"] = [{"type": "value", "options": options}]
    overrides = []
    if kind == "timeseries":
        custom = {"lineWidth": 1, "fillOpacity": 0, "showPoints": "never", "spanNulls": False}
        if more.get("stack"):
            custom |= {"stacking": {"mode": "normal", "group": "A"}, "fillOpacity": 40}
        if more.get("log"):
            custom["scaleDistribution"] = {"type": "log", "log": 10}
        if lines:
            custom["thresholdsStyle"] = {"mode": "line"}
        if more.get("bars"):
            custom |= {"drawStyle": "bars", "fillOpacity": 60}
        defaults["custom"] = custom
        defaults["color"] = {"mode": "palette-classic"}
        dashed = [
            {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [8, 6]}},
            {"id": "color", "value": {"mode": "fixed", "fixedColor": RED}},
            {"id": "custom.stacking", "value": {"mode": "none"}},
            {"id": "custom.fillOpacity", "value": 0},
        ]
        overrides = [{"matcher": {"id": "byRegexp", "options": "/^limit of /"}, "properties": dashed}]
        out["options"] = {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    elif kind == "stat":
        defaults["color"] = {"mode": "thresholds"}
        out["options"] = {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "textMode": more.get("text", "value"),
            "colorMode": "value",
            "graphMode": more.get("graph", "none"),
            "justifyMode": "auto",
        }
    elif kind == "state-timeline":
        defaults["custom"] = {"lineWidth": 0, "fillOpacity": 80}
        defaults["color"] = {"mode": "thresholds"}
        out["options"] = {
            "mergeValues": True,
            "showValue": more.get("show", "auto"),
            "rowHeight": 0.85,
            "alignValue": "center",
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False},
            "tooltip": {"mode": "single"},
        }
    elif kind == "heatmap":
        out["options"] = {
            "calculate": False,
            "cellGap": 0,
            "color": {"mode": "scheme", "scheme": "Spectral", "steps": 64, "reverse": True, "exponent": 0.5},
            "exemplars": {"color": "rgba(255,0,255,0.9)"},
            "filterValues": {"le": 1e-9},
            "rowsFrame": {"layout": "auto"},
            "tooltip": {"mode": "single", "yHistogram": True},
            "yAxis": {"axisPlacement": "left", "unit": panel.unit},
            "legend": {"show": False},
        }
        defaults.pop("thresholds")
    else:
        raise Wrong(f"{panel.title}: no panel of kind {kind}")
    out["fieldConfig"] = {"defaults": defaults, "overrides": overrides}


def variables():
    cluster = 'label_values(blockraft_node_info, cluster_id)'
    instance = 'label_values(blockraft_node_info{cluster_id="$cluster"}, instance)'
    return [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "refresh": 1, "hide": 0,
         "current": {}, "options": []},
        {"name": "cluster", "label": "Cluster", "type": "query", "datasource": SOURCE, "definition": cluster,
         "query": {"query": cluster, "refId": "cluster"}, "refresh": 2, "sort": 1, "multi": False, "includeAll": False,
         "current": {}, "options": []},
        {"name": "instance", "label": "Node", "type": "query", "datasource": SOURCE, "definition": instance,
         "query": {"query": instance, "refId": "instance"}, "refresh": 2, "sort": 1, "multi": True, "includeAll": True,
         "current": {"text": "All", "value": "$__all", "selected": True}, "options": []},
    ]


def annotations(snapshots):
    def note(name, color, expr, title, enabled):
        return {"name": name, "datasource": SOURCE, "enable": enabled, "hide": False, "iconColor": color, "expr": expr,
                "target": {"expr": expr, "refId": "Anno", "interval": ""}, "titleFormat": title, "textFormat": "",
                "tagKeys": "", "useValueForTime": "on", "step": ""}

    since = "1000 * (blockraft_raft_leader_since_timestamp_seconds > 0 and on (job, instance) blockraft_raft_is_leader == 1)"
    made = "1000 * (blockraft_raft_snapshot_last_success_timestamp_seconds > 0)"
    started = "1000 * process_start_time_seconds"
    builtin = {"builtIn": 1, "datasource": {"type": "grafana", "uid": "-- Grafana --"}, "enable": True, "hide": True,
               "iconColor": "rgba(0, 211, 255, 1)", "name": "Annotations & Alerts", "type": "dashboard"}
    return [builtin,
            note("Leader changes", PURPLE, by_node(since), "{{node_name}} leads", True),
            note("Snapshots", BLUE, by_node(made), "{{node_name}}: snapshot", snapshots),
            note("Restarts", AMBER, by_node(started), "{{node_name}} started", True)]


def board(rules, uid, title, says, rows, snapshots=False):
    """`rows` is a list of (heading, panels)."""
    panels, y, ident = [], 0, 1
    for heading, content in rows:
        panels.append({"id": ident, "type": "row", "title": heading, "collapsed": False, "panels": [],
                       "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}})
        ident, y, x, tallest = ident + 1, y + 1, 0, 0
        for panel in content:
            if 24 < x + panel.w:
                x, y, tallest = 0, y + tallest, 0
            panels.append(panel.json(rules, ident, x, y))
            ident, x, tallest = ident + 1, x + panel.w, max(tallest, panel.h)
        y += tallest
    return {
        "id": None, "uid": uid, "title": title, "description": says, "tags": ["blockraft"], "schemaVersion": 39, "version": 1,
        "editable": True, "graphTooltip": 1, "refresh": "5s", "time": {"from": "now-30m", "to": "now"}, "timezone": "browser",
        "timepicker": {"refresh_intervals": ["5s", "15s", "1m", "5m"]}, "fiscalYearStartMonth": 0, "weekStart": "",
        "annotations": {"list": annotations(snapshots)},
        "links": [{"asDropdown": True, "icon": "external link", "includeVars": True, "keepTime": True, "tags": ["blockraft"],
                   "targetBlank": False, "title": "blockraft", "tooltip": "", "type": "dashboards", "url": ""}],
        "templating": {"list": variables()}, "panels": panels,
    }
