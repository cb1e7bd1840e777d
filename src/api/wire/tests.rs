use serde_json::{Value, json};

use super::*;

fn stored() -> StoredBlock {
    let block = Block {
        height: 7,
        hash: Bytes::from_static(&[0xAB, 1]),
        timestamp: u64::MAX,
        header: Bytes::new(),
        data: Bytes::from_static(&[0]),
        parent_hash: None,
        last_submitted_da_header_height: 5,
        last_submitted_da_data_height: 4,
    };
    StoredBlock { block, term: 2, index: 9 }
}

#[test]
fn a_block_is_written_as_the_contract_has_it() {
    let want = json!({
        "block": {
            "height": 7, "hash": "0xab01", "timestamp": u64::MAX.to_string(), "header": "0x", "data": "0x00",
            "lastSubmittedDaHeaderHeight": 5, "lastSubmittedDaDataHeight": 4
        },
        "term": 2, "index": 9
    });
    assert_eq!(serde_json::to_value(BlockAt::from(stored())).unwrap(), want);
    let mut head = want;
    let block = head["block"].as_object_mut().unwrap();
    block.remove("header");
    block.remove("data");
    assert_eq!(serde_json::to_value(HeadAt::from(stored())).unwrap(), head);
    let mut with_parent = stored();
    with_parent.block.parent_hash = Some(Bytes::from_static(&[1]));
    assert_eq!(serde_json::to_value(BlockAt::from(with_parent)).unwrap()["block"]["parentHash"], "0x01");
}

#[test]
fn an_acknowledgement_has_a_trace_id_or_null() {
    let mut accepted = Accepted {
        height: 7,
        hash: Bytes::from_static(&[1]),
        term: 2,
        index: 9,
        duplicate: true,
        trace_id: Some([0xab; 16]),
    };
    let json = serde_json::to_value(Acknowledged::from(accepted.clone())).unwrap();
    assert_eq!(json["traceId"], "ab".repeat(16));
    assert_eq!(json["duplicate"], true);
    accepted.trace_id = None;
    assert_eq!(serde_json::to_value(Acknowledged::from(accepted)).unwrap()["traceId"], Value::Null);
}

#[test]
fn members_are_in_the_order_of_their_ids() {
    let member = |node_id| Member { node_id, name: format!("node-{node_id}"), ..Default::default() };
    let members = Members {
        version: 3,
        voters: [2, 1].into(),
        learners: [3].into(),
        nodes: [3, 2, 1].map(|id| (id, member(id))).into(),
        joint: false,
    };
    let json = serde_json::to_value(MembersJson::from(&members)).unwrap();
    assert_eq!(json["voters"][0]["nodeId"], 1);
    assert_eq!(json["learners"][0]["apiAddr"], Value::Null);
}
