use std::convert::Infallible;

use super::*;

fn hash(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn head(height: Height) -> BlockRef {
    BlockRef { height, hash: hash(&format!("h{height}")), timestamp: height }
}

fn kept(height: Height, oldest: Height, has_pruned: bool) -> Kept {
    Kept { head: Some(head(height)), oldest_height: Some(oldest), has_pruned }
}

/// Heights `oldest` to the head's are agreed, each with its own hash.
fn judged(height: Height, text: &str, hash_at_head: Option<&str>, kept: &Kept) -> Verdict {
    let claim = Claim { height, hash: hash(text), hash_at_head: hash_at_head.map(hash) };
    let at = |h: Height| {
        let oldest = kept.oldest_height.unwrap_or(0);
        Ok::<_, Infallible>(match h {
            h if h < oldest && kept.has_pruned => At::Forgotten,
            h if h < oldest => At::Nothing,
            // A chain with gaps: height 13 was left out.
            13 => At::Nothing,
            h => At::Hash(hash(&format!("h{h}"))),
        })
    };
    let Ok(verdict) = verdict(&claim, kept, at);
    verdict
}

#[test]
fn every_place_an_executor_can_be_at_has_its_verdict() {
    let k = kept(20, 5, true);
    assert_eq!(judged(20, "h20", None, &k), Verdict::InSync);
    assert_eq!(judged(19, "h19", None, &k), Verdict::Behind { by: 1 });
    assert_eq!(judged(15, "h15", None, &k), Verdict::Behind { by: 5 });
    assert_eq!(judged(5, "h5", None, &k), Verdict::Behind { by: 15 });
    // Local ahead of a stale state: fine with the same hash at our head, a fork with another.
    assert_eq!(judged(22, "h22", None, &k), Verdict::Ahead { by: 2, head: Some(head(20)) });
    assert_eq!(judged(22, "h22", Some("h20"), &k), Verdict::AheadOfStaleState { by: 2, head: head(20) });
    assert_eq!(judged(22, "h22", Some("x"), &k), Verdict::Forked { height_differs: 20 });
    assert_eq!(judged(20, "x", None, &k), Verdict::Forked { height_differs: 20 });
    assert_eq!(judged(7, "x", None, &k), Verdict::Forked { height_differs: 7 });
    assert_eq!(judged(13, "h13", None, &k), Verdict::Forked { height_differs: 13 });
    // Before the kept history nobody can tell.
    assert_eq!(judged(4, "h4", None, &k), Verdict::Unknown { oldest_height: Some(5) });
    assert_eq!(judged(0, "", None, &k), Verdict::Unknown { oldest_height: Some(5) });
    // Nothing was pruned: from the very beginning everything can be read.
    let whole = kept(20, 1, false);
    assert_eq!(judged(0, "", None, &whole), Verdict::Behind { by: 20 });
    // The chain began above: no block of ours was ever there.
    let late = kept(20, 5, false);
    assert_eq!(judged(3, "h3", None, &late), Verdict::Unknown { oldest_height: Some(5) });
    let none = Kept { head: None, oldest_height: None, has_pruned: false };
    assert_eq!(judged(0, "", None, &none), Verdict::InSync);
    assert_eq!(judged(9, "h9", None, &none), Verdict::Ahead { by: 9, head: None });
}

const CONFIG: Config = Config {
    is_required: false,
    max_lag: 1,
    sync_timeout: Duration::from_secs(1),
    report_timeout: Duration::from_secs(3),
};

fn report(lag: u64, is_healthy: bool) -> Report {
    let verdict = if lag == 0 { Verdict::InSync } else { Verdict::Behind { by: lag } };
    Report { height: 20 - lag, is_healthy, is_active: None, reason: None, verdict, lag }
}

#[test]
fn behind_by_one_is_well_and_behind_by_five_is_not() {
    let start = Instant::now();
    let mut executor = Executor::new(CONFIG, start);
    assert_eq!(executor.ill(start), None, "one that never reported and need not");
    executor.report(start, report(1, true));
    assert_eq!(executor.ill(start), None);
    let at = start + Duration::from_secs(1);
    executor.report(at, report(5, true));
    assert_eq!(executor.ill(at), Some(Ill { what: Illness::Lagging(5), since: at }));
    // It goes on lagging: since the first of these reports.
    let later = at + Duration::from_secs(2);
    executor.report(later, report(4, true));
    assert_eq!(executor.ill(later), Some(Ill { what: Illness::Lagging(4), since: at }));
    // It catches up.
    executor.report(later, report(0, true));
    assert_eq!(executor.ill(later), None);
}

#[test]
fn silence_after_a_first_report_is_illness() {
    let start = Instant::now();
    let mut executor = Executor::new(CONFIG, start);
    executor.report(start, report(0, true));
    assert_eq!(executor.ill(start + CONFIG.report_timeout), None);
    let late = start + CONFIG.report_timeout + Duration::from_millis(1);
    let ill = executor.ill(late).expect("it is silent");
    assert_eq!(ill.what, Illness::Silent(late - start));
    assert_eq!(ill.since, start + CONFIG.report_timeout);
    executor.report(late, report(0, true));
    assert_eq!(executor.ill(late), None);
}

#[test]
fn what_must_report_and_never_did_is_missing() {
    let start = Instant::now();
    let executor = Executor::new(Config { is_required: true, ..CONFIG }, start);
    assert_eq!(executor.ill(start), Some(Ill { what: Illness::Missing, since: start }));
}

#[test]
fn a_fork_is_told_before_anything_else() {
    let start = Instant::now();
    let mut executor = Executor::new(CONFIG, start);
    let forked = Report { verdict: Verdict::Forked { height_differs: 7 }, ..report(9, false) };
    executor.report(start, forked);
    assert_eq!(executor.ill(start).map(|i| i.what), Some(Illness::Forked(7)));
    let long = start + Duration::from_secs(60);
    assert_eq!(executor.ill(long).map(|i| i.what), Some(Illness::Forked(7)));
    executor.report(long, Report { reason: Some("db".into()), ..report(0, false) });
    assert_eq!(executor.ill(long).map(|i| i.what), Some(Illness::Unhealthy(Some("db".into()))));
}
