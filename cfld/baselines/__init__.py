from cfld.config import ABLATIONS, ablation, from_dict, read_config, to_dict
from cfld.model import CFLD as build
