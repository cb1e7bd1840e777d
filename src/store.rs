//! STUB
use crate::machine::apply::View;
use crate::types::{block::Block, error::Accepted};
use std::sync::Arc;
#[derive(Clone)]
pub(crate) struct Reader;
impl Reader {
    pub(crate) fn leaderships(&self, _t: Option<u64>, _n: usize) -> Vec<crate::machine::apply::Leadership> {
        unimplemented!()
    }
    pub(crate) fn view(&self) -> Arc<View> {
        unimplemented!()
    }
    pub(crate) fn find_same(&self, _b: &Block) -> Option<Accepted> {
        unimplemented!()
    }
}
#[derive(Clone)]
pub(crate) struct Health;
pub(crate) struct HealthView {
    pub(crate) is_full: bool,
    pub(crate) fatal: Option<()>,
}
impl Health {
    pub(crate) fn get(&self) -> HealthView {
        unimplemented!()
    }
}
