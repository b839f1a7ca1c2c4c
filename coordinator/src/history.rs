//! Whose completed texts a request may share: a key made of the tenant, which the server knows, and of the name that the
//! request gives, which nobody else has to know.

use speculation::history::HistoryKey;

/// What the key is for, and how it is made; another way needs another name (BLAKE3, section 6.2, "derive_key").
const CONTEXT: &str = "offshoot history 1: tenant, name";

/// The key of a tenant's history; `None` where a request names none. Different tenants or names have different keys.
pub(crate) fn key(tenant: &str, name: &str) -> Option<HistoryKey> {
    if name.is_empty() {
        return None;
    }
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    for part in [tenant, name] {
        // With its length, so that no tenant can be made to end in the beginning of a name.
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    Some(HistoryKey(*hasher.finalize().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn tenants_and_names_do_not_meet() {
        let pairs = [
            ("", "a"),
            ("", "b"),
            ("a", "a"),
            ("a", "b"),
            ("b", "a"),
            ("ab", "c"),
            ("a", "bc"),
            ("abc", "a"),
        ];
        let keys: BTreeSet<_> = pairs
            .iter()
            .map(|(tenant, name)| key(tenant, name))
            .collect();
        assert_eq!(keys.len(), pairs.len());
        assert!(!keys.contains(&None));
    }

    #[test]
    fn the_same_name_of_the_same_tenant_is_the_same_history_in_every_process() {
        assert_eq!(key("t", "n"), key("t", "n"));
        let HistoryKey(bytes) = key("t", "n").expect("it is named");
        assert_ne!(bytes, [0; 32]);
        assert_eq!(key("t", ""), None);
    }
}
