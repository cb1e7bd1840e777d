use bytes::Bytes;
use serde_json::{Value, json};

use super::*;
use crate::api::handlers;
use crate::types::block::Block;
use crate::types::feed::TraceContext;

fn applied(n_bytes: usize) -> Applied {
    let block = Block {
        height: 7,
        hash: Bytes::from_static(&[0xab]),
        timestamp: 1 << 60,
        header: Bytes::from_static(&[1]),
        data: Bytes::from(vec![2; n_bytes]),
        ..Block::default()
    };
    let trace = TraceContext { trace_id: [3; 16], span_id: [4; 8], flags: 1 };
    Applied { term: 2, index: 9, block, replayed: false, trace: Some(trace) }
}

fn message(item: FeedItem, max_bytes: u64) -> Value {
    let raw = write(item, max_bytes, handlers::to_raw, |raw| raw.get().len());
    serde_json::from_str(raw.get()).unwrap()
}

#[test]
fn items_are_written_as_the_contract_has_them() {
    assert_eq!(
        message(FeedItem::Applied(applied(2)), 0),
        json!({
            "block": {
                "height": 7, "hash": "0xab", "timestamp": (1u64 << 60).to_string(), "header": "0x01",
                "data": "0x0202", "lastSubmittedDaHeaderHeight": 0, "lastSubmittedDaDataHeight": 0
            },
            "term": 2, "index": 9, "replayed": false,
            "traceparent": format!("00-{}-{}-01", "03".repeat(16), "04".repeat(8))
        })
    );
    let gap = Gap { from_index: 3, to_index: 9, dropped: 4, repair: Repair::Replay };
    assert_eq!(
        message(FeedItem::Gap(gap), 1),
        json!({"gap": {"fromIndex": 3, "toIndex": 9, "dropped": 4, "repair": "replay"}})
    );
    let pruned = Gap { repair: Repair::Pruned { oldest_height: 8 }, ..gap };
    assert_eq!(
        message(FeedItem::Gap(pruned), 1),
        json!({"gap": {"fromIndex": 3, "toIndex": 9, "dropped": 4, "repair": "pruned", "oldestHeight": 8}})
    );
    assert_eq!(
        message(FeedItem::CaughtUp(CaughtUp { height: None, index: 3 }), 1),
        json!({"caughtUp": {"height": null, "index": 3}})
    );
    let end = |reason| message(FeedItem::End(End { reason, last_index: Some(9) }), 1);
    assert_eq!(
        end(EndReason::Slow),
        json!({"end": {"code": -32034, "message": "the buffer was full", "reason": "slow", "lastIndex": 9}})
    );
    assert_eq!(end(EndReason::ShuttingDown)["end"]["code"], -32040);
    assert_eq!(end(EndReason::Storage)["end"]["reason"], "storage");
}

#[test]
fn a_block_without_a_trace_has_no_traceparent() {
    let item = FeedItem::Applied(Applied { trace: None, replayed: true, ..applied(0) });
    let item = message(item, 0);
    assert_eq!(item.get("traceparent"), None);
    assert_eq!(item["replayed"], true);
}

#[test]
fn an_item_is_cut_by_the_length_of_its_whole_message() {
    let whole = message(FeedItem::Applied(applied(500)), 0);
    let length = whole.to_string().len() as u64;
    assert_eq!(message(FeedItem::Applied(applied(500)), length), whole);
    // By one byte too long, which only the written message tells; and by far.
    for max_bytes in [length - 1, 900] {
        let cut = message(FeedItem::Applied(applied(500)), max_bytes);
        let mut want = whole.clone();
        want["truncated"] = json!(true);
        let block = want["block"].as_object_mut().unwrap();
        block.remove("header");
        block.remove("data");
        assert_eq!(cut, want, "{max_bytes}");
    }
    assert_eq!(message(FeedItem::Applied(applied(2 << 20)), 0)["truncated"], Value::Null);
}

#[test]
fn what_is_asked_for_is_within_its_bounds() {
    assert_eq!(start(None, None).unwrap(), StartAt::Live);
    assert_eq!(start(Some(3), None).unwrap(), StartAt::Height(3));
    assert_eq!(start(None, Some(3)).unwrap(), StartAt::Index(3));
    assert_eq!(start(Some(3), Some(3)).unwrap_err().data.param.as_deref(), Some("fromIndex"));
    assert_eq!(buffer(None).unwrap(), None);
    assert_eq!(buffer(Some(10_000)).unwrap(), Some(10_000));
    for wrong in [0, 10_001, u64::MAX] {
        assert_eq!(buffer(Some(wrong)).unwrap_err().data.param.as_deref(), Some("buffer"), "{wrong}");
    }
}

#[test]
fn the_schema_knows_every_item() {
    let mut generator = SchemaGenerator::default();
    let schema = generator.subschema_for::<ItemJson>();
    assert!(schema.as_object().unwrap().contains_key("$ref"), "it has a name: {schema:?}");
    let defined = serde_json::to_value(generator.definitions()).unwrap();
    assert_eq!(defined["FeedItem"]["anyOf"].as_array().unwrap().len(), 4);
}
