//! What configs of a broker only that broker can check: `cordoned.log.dirs` names directories that are its own (KIP-1066).

use metadata::MetadataImage;
use metadata::configs;
use metadata::control::{ConfigChange, ConfigOperation, ControlError};
use metadata::records::ConfigResource;
use model::{BrokerId, ErrorCode};

use crate::refusal::Refusal;

const CORDONED: &str = "cordoned.log.dirs";

/// Checks changes of a broker's configs, where this is the broker `here` with these log directories; those of other resources
/// pass.
pub(crate) fn check_changes(
    type_code: i8,
    name: &str,
    changes: &[ConfigChange],
    image: &MetadataImage,
    here: (BrokerId, impl Fn() -> Vec<String>),
) -> Result<(), Refusal> {
    let Some(resource) = ConfigResource::from_kafka(type_code, name) else { return Ok(()) };
    for change in changes.iter().filter(|change| change.name == CORDONED) {
        let value = match &change.operation {
            ConfigOperation::Set(Some(value)) => value.clone(),
            ConfigOperation::Append(Some(more)) => {
                let set = image.config_of(&resource, CORDONED).unwrap_or_default();
                let mut all = configs::list(set);
                all.extend(configs::list(more).into_iter().filter(|each| !all.contains(each)).collect::<Vec<_>>());
                all.join(",")
            }
            // Fewer of those that are taken; and null, which the controller refuses.
            _ => continue,
        };
        check(&resource, &value, &here)?;
    }
    Ok(())
}

/// Checks the whole new configs of a broker, as [`check_changes`].
pub(crate) fn check_whole(
    type_code: i8,
    name: &str,
    given: &[(String, Option<String>)],
    here: (BrokerId, impl Fn() -> Vec<String>),
) -> Result<(), Refusal> {
    let Some(resource) = ConfigResource::from_kafka(type_code, name) else { return Ok(()) };
    let value = given.iter().find(|(name, _)| name == CORDONED).and_then(|(_, value)| value.as_deref());
    value.map_or(Ok(()), |value| check(&resource, value, &here))
}

fn check(
    resource: &ConfigResource,
    value: &str,
    (here, log_dirs): &(BrokerId, impl Fn() -> Vec<String>),
) -> Result<(), Refusal> {
    let refuse = |message: String| Err(Refusal::Decided(ControlError::new(ErrorCode::InvalidRequest, message)));
    match resource {
        ConfigResource::Broker(id) if id != here => {
            refuse(format!("{CORDONED}: broker {here} does not know the log directories of broker {id}: ask that one"))
        }
        ConfigResource::Broker(_) => configs::check_cordoned(value, &log_dirs()).or_else(refuse),
        // The controller refuses it.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(broker: &str, operation: ConfigOperation) -> Option<String> {
        let change = ConfigChange { name: CORDONED.to_owned(), operation };
        let dirs = || vec!["/a".to_owned(), "/b".to_owned()];
        let checked = check_changes(4, broker, &[change], &MetadataImage::default(), (BrokerId(1), dirs));
        checked.err().map(|refusal| {
            assert_eq!(refusal.wire(), ErrorCode::InvalidRequest.code());
            refusal.message().unwrap()
        })
    }

    fn set(value: &str) -> Option<String> {
        changed("1", ConfigOperation::Set(Some(value.to_owned())))
    }

    #[test]
    fn only_directories_of_the_broker_are_cordoned() {
        for right in ["", "*", "/a", "/b", "/a,/b", " /b , /a "] {
            assert_eq!(set(right), None, "{right}");
        }
        for wrong in ["/c", "/a,/c", "*,/a", "a", "/a/"] {
            assert!(set(wrong).is_some(), "{wrong}");
        }
        let append = |value: &str| ConfigOperation::Append(Some(value.to_owned()));
        assert_eq!(changed("1", append("/a")), None);
        assert!(changed("1", append("/c")).unwrap().contains("/c"));
        assert_eq!(changed("1", ConfigOperation::Subtract(Some("/c".to_owned()))), None);
        assert_eq!(changed("1", ConfigOperation::Delete), None);
        assert!(changed("2", ConfigOperation::Set(Some("/a".to_owned()))).unwrap().contains("broker 2"));
        let whole = [(CORDONED.to_owned(), Some("/c".to_owned()))];
        assert!(check_whole(4, "1", &whole, (BrokerId(1), || vec!["/a".to_owned()])).is_err());
        assert!(check_whole(4, "1", &whole, (BrokerId(1), || vec!["/c".to_owned()])).is_ok());
    }
}
