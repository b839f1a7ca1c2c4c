//! What users notice of a fault: real processes under load, one fault at a time.
//!
//! [`rig`] starts a cluster with a [`Proxy`](crate::proxy::Proxy) on every connection; [`load`] runs clients on it and
//! compares every token with plain decoding on an undisturbed cluster; [`row`] defines the faults and injects them;
//! [`trial`] repeats one under load; [`measure`] computes the figures and [`table`] prints them.

pub mod load;
pub mod measure;
pub mod rig;
pub mod row;
pub mod table;
pub mod trial;
