//! Private pools with captures and graphs of the driver.

use crate::apart::on_one;
use crate::scenarios::graphs::graph_scenarios;
use crate::scenarios::{Kind, Site, graphs};

macro_rules! on_the_gpu {
    ($($scenario:ident,)*) => {
        mod handles {
            $(
                #[test]
                fn $scenario() {
                    super::on_one(module_path!(), stringify!($scenario), |place| {
                        let site = super::Site::new(place, super::Kind::Handles);
                        super::graphs::$scenario(&site);
                    });
                }
            )*
        }

        mod segments {
            $(
                #[test]
                fn $scenario() {
                    super::on_one(module_path!(), stringify!($scenario), |place| {
                        let site = super::Site::new(place, super::Kind::Segments);
                        super::graphs::$scenario(&site);
                    });
                }
            )*
        }
    };
}
graph_scenarios!(on_the_gpu);
