//! What users notice of a fault: real processes under load, one fault at a time.
//!
//! [`rig`] starts a cluster with a [`Proxy`](crate::proxy::Proxy) on every link; [`load`] keeps clients busy on it and
//! compares every token with plain decoding on an undisturbed cluster; [`row`] says which faults there are and does
//! them; [`trial`] repeats one under load; [`measure`] is the arithmetic and [`table`] the page.

pub mod load;
pub mod measure;
pub mod rig;
pub mod row;
pub mod table;
pub mod trial;
