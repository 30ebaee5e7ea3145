"""The word lists that `demo.text` builds its reviews from. Alternatives are separated by "|"."""

from typing import NamedTuple


class Phrases(NamedTuple):
    """How one aspect is talked about: who does it, and what it does when it is good or bad."""

    subjects: list[str]
    good: list[str]
    bad: list[str]


class Kind(NamedTuple):
    """A group of products that share the aspects people judge them by."""

    products: list[str]
    aspects: list[str]


def alternatives(text: str) -> list[str]:
    return text.split("|")


def phrases(subjects: str, good: str, bad: str) -> Phrases:
    return Phrases(alternatives(subjects), alternatives(good), alternatives(bad))


def kind(products: str, aspects: str) -> Kind:
    return Kind(alternatives(products), alternatives(aspects))


KINDS_EN = [
    kind(
        "kettle|toaster|blender|coffee maker|rice cooker|microwave|juicer|air fryer|food mixer|dishwasher|waffle iron",
        "noise|price|delivery|size|cleaning|durability|packaging|instructions|service|smell",
    ),
    kind(
        "headset|phone|laptop|tablet|smart watch|camera|speaker|keyboard|power bank|e-reader|electric razor|torch"
        "|drone",
        "battery|price|delivery|sound|durability|instructions|service|packaging|weight|comfort",
    ),
    kind(
        "jacket|raincoat|sweater|dress|scarf|hat|shirt|backpack|handbag|hoodie|swimsuit|belt",
        "size|price|delivery|colour|comfort|smell|durability|service|weight",
    ),
    kind(
        "coffee|green tea|honey|chocolate|olive oil|jam|cheese|hot sauce|cereal|peanut butter|orange juice|pasta",
        "taste|price|delivery|packaging|smell|size|service",
    ),
    kind(
        "desk lamp|office chair|mattress|bookshelf|pillow|rug|curtain|sofa|tent|bicycle|suitcase|umbrella|yoga mat",
        "price|delivery|size|colour|comfort|durability|smell|instructions|weight|service|cleaning",
    ),
    kind(
        "vacuum cleaner|hair dryer|fan|air purifier|washing machine|drill|lawn mower|heater|sewing machine|toothbrush",
        "noise|price|delivery|durability|battery|weight|instructions|service|cleaning|size",
    ),
]

ASPECTS_EN = {
    "battery": phrases(
        "the battery|battery life|the charge",
        "lasts for days|is still half full after a week|easily gets me through the weekend|charges in no time"
        "|holds up even in the cold|is better than promised|never leaves me stranded",
        "is dead by noon|drains while it does nothing|needs the plug twice a day|takes forever to fill up"
        "|gives up after half an hour|is much weaker than promised|was useless within a month",
    ),
    "price": phrases(
        "the price|what they charge|the cost",
        "is more than fair|is hard to beat|is a real bargain|was lower than in any other shop|suits a small budget"
        "|is low for what you get|made me smile",
        "is a rip-off|is far too high|went up right after the sale|is double what others ask|is hard to justify"
        "|is steep for what you get|made me swallow hard",
    ),
    "delivery": phrases(
        "delivery|shipping|the courier",
        "was quick|arrived a day early|took only one day|kept me posted the whole way|was right on time"
        "|beat the promised date|was friendly and fast",
        "took three weeks|was late again|got lost twice|never told me anything|dropped it at the wrong house"
        "|missed the promised date|was slow and rude",
    ),
    "size": phrases(
        "the size|the fit|the overall size",
        "is just right|matches the chart exactly|is perfect for us|could not be better|is exactly as described"
        "|suits our small flat|is what I hoped for",
        "is all wrong|does not match the chart|is useless for us|is way off|is nothing like described"
        "|is too much for our small flat|is not what I ordered",
    ),
    "noise": phrases(
        "the noise|the noise level|the hum",
        "is barely there|never wakes the baby|is lower than a whisper|is hardly worth mentioning"
        "|stays pleasantly low|does not bother anyone|is gone after a second",
        "drives me mad|wakes the whole house|is like a jet taking off|gives me a headache|gets worse every day"
        "|bothers even the neighbours|never stops",
    ),
    "taste": phrases(
        "the taste|the flavour|the aftertaste",
        "is rich and smooth|is wonderful|reminds me of my childhood|is fresh and clean|won over the whole family"
        "|is simply delicious|is never boring",
        "is bitter and flat|is awful|reminds me of cardboard|is stale|put off the whole family|is simply disgusting"
        "|is like water",
    ),
    "service": phrases(
        "customer service|the support team|the shop assistant",
        "answered within minutes|solved everything politely|went out of their way to help|was patient with me"
        "|sent a spare part for free|was a pleasure to deal with|kept every promise",
        "never answered|just hung up on me|was rude from start to end|sent me round in circles|refused to help"
        "|was a nightmare to deal with|broke every promise",
    ),
    "packaging": phrases(
        "the packaging|the box|the wrapping",
        "was neat and solid|kept everything safe|looked like a gift|was easy to open|used no plastic at all"
        "|was carefully sealed|arrived without a scratch",
        "was torn open|let everything break|looked like rubbish|was impossible to open|used a mountain of plastic"
        "|was badly sealed|arrived soaking wet",
    ),
    "smell": phrases(
        "the smell|the scent|the odour",
        "is lovely|is fresh and light|makes the room nicer|is mild and pleasant|faded after an hour, no problem"
        "|is something I enjoy|is gentle",
        "is horrible|is sharp like chemicals|fills the whole house|makes me feel sick|is still there after a month"
        "|is something I cannot stand|is like burnt rubber",
    ),
    "comfort": phrases(
        "the comfort|how it feels|wearing or using it",
        "is a dream|is soft and easy|beats anything I had before|is great even after hours|is like a cloud"
        "|is a relief for my back|is pure luxury",
        "is torture|is stiff and scratchy|is worse than anything I had before|hurts after ten minutes|is like a brick"
        "|is bad news for my back|is a pain",
    ),
    "colour": phrases(
        "the colour|the shade|the hue",
        "is even prettier in real life|is bright and clear|stays fresh after many washes|matches everything"
        "|is exactly like the photo|gets me compliments|is gorgeous",
        "is much duller in real life|is muddy and dark|came off on my hands|matches nothing"
        "|is nothing like the photo|gets me funny looks|is ugly",
    ),
    "durability": phrases(
        "the build|the build quality|the material",
        "is rock solid|survived three falls|still looks like new after a year|will outlive me|shows no wear"
        "|feels sturdy|can take a beating",
        "is flimsy|cracked on the first fall|fell apart after a week|will not see the summer|is worn out already"
        "|feels like a toy|cannot take anything",
    ),
    "cleaning": phrases(
        "cleaning|cleaning it|washing up afterwards",
        "takes a minute|is child's play|needs just a damp cloth|is no work at all|is easier than I feared"
        "|is done before the tea is ready|could not be simpler",
        "takes an hour|is a nightmare|needs three tools and a lot of luck|is endless work|is worse than I feared"
        "|leaves dirt in every corner|could not be more annoying",
    ),
    "instructions": phrases(
        "the manual|the instructions|the setup guide",
        "explained it all in plain words|had me ready in five minutes|is clear and short|has really good pictures"
        "|answered every question|is a joy to follow|made it simple",
        "explained nothing|cost me a whole evening|is a mess|has pictures of another model|left every question open"
        "|is impossible to follow|made it worse",
    ),
    "weight": phrases(
        "the weight|carrying it|lifting it",
        "is no issue at all|is easy even for my kid|is like holding a feather|is ideal for travel|never tires me"
        "|was a happy surprise|is just what I wanted",
        "is a real problem|is too much even for my husband|is like hauling bricks|rules out any travel"
        "|wears me out|was a nasty surprise|ruined my back",
    ),
    "sound": phrases(
        "the sound|the audio|the sound quality",
        "is crisp and full|fills the room beautifully|is clear even when turned up|has lovely bass|amazed my friends"
        "|is better than on my old one|is pure music",
        "is thin and tinny|crackles all the time|breaks up when turned up|has no bass at all|made my friends laugh"
        "|is worse than on my old one|is pure static",
    ),
}

# Sentences that name the product, then ones that do not; neither may hint at the judgement.
INTROS_EN = alternatives(
    "Bought this {p} last week.|Got the {p} for my mum.|I have had this {p} since {month}.|Ordered the {p} on {day}."
    "|My {who} wanted this {p}.|This is my {nth} {p}.|We use the {p} every day.|A few words about the {p}."
    "|Picked this {p} after reading around for a while.|So, the {p}.|Review of the {p} after {n} days."
    "|The {p} came with a friend's recommendation.|I own the {p} from the {season} collection."
    "|Finally tried the {p}.|{p}, {n} weeks in.|Needed one before the {season}, so I took this {p}."
)
BARE_EN = alternatives(
    "{S} {v}|{A}, {s} {v}|{A}, {s} {v}|{S}, {a}, {v}|What I noticed first: {s} {v}|My {who} says {s} {v}"
)
FRAMES_EN = alternatives(
    "With this {p}, {s} {v}|As for the {p}: {s} {v}|{p}: {s} {v}|{A}, with the {p} {s} {v}"
    "|I use the {p} {often} and {s} {v}|What to know about the {p}: {s} {v}|{S} {v}, at least for the {p} I got"
    "|I am writing about the {p} because {s} {v}"
)
FILLERS_EN = alternatives(
    "It stands in the {room} now.|I am {age} years old, by the way.|My {who} uses it too.|We are a family of {n}."
    "|I tried it on {day} and again on {day2}.|That is all I can say so far.|The rest is as expected."
    "|I had another brand before.|Mine is the version from {month}.|I will update this in {month}."
    "|Bought it in the shop in town.|It was meant for the {season}.|Nothing else to report."
    "|My first review here, sorry if it is short."
    "|I paid with a voucher from my {who}.|The rest of the {room} is still empty, haha."
)
GOOD_EN = alternatives(
    "Would buy again.|Five stars!|Very happy.|Highly recommended.|I love it.|Thank you!|So glad I got it.|Great stuff."
    "|Keep it up.|Already ordered another one."
)
BAD_EN = alternatives(
    "Never again.|One star.|Very disappointed.|Stay away.|I want my money back.|What a shame.|Already sent it back."
    "|Terrible.|Do better.|I regret it."
)
ADVERBS_EN = alternatives(
    "honestly|to be fair|I must say|in my opinion|tbh|frankly|as far as I can tell|well|imo|after some time"
)
SLOTS_EN = {
    "month": alternatives("January|February|March|April|May|June|July|August|September|October|November|December"),
    "day": alternatives("Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"),
    "day2": alternatives("the next morning|the weekend|my day off|a rainy evening"),
    "who": alternatives("husband|wife|sister|brother|dad|neighbour|boss|daughter|son|roommate|aunt"),
    "nth": alternatives("first|second|third|fourth"),
    "n": alternatives("two|three|four|five|six|ten"),
    "season": alternatives("summer|winter|autumn|spring|holiday"),
    "room": alternatives("kitchen|hall|bedroom|office|garage|living room"),
    "age": alternatives("23|31|38|45|52|67|74"),
    "often": alternatives("daily|at work|at home|on weekends|in the evening"),
}

KINDS_ZH = [
    kind(
        "电水壶|烤面包机|搅拌机|咖啡机|电饭煲|微波炉|榨汁机|空气炸锅|豆浆机|洗碗机|电磁炉",
        "噪音|价格|物流|尺寸|清洗|做工|包装|说明书|客服|气味",
    ),
    kind(
        "耳机|手机|笔记本电脑|平板|智能手表|相机|音箱|键盘|充电宝|电子书|剃须刀|手电筒|无人机",
        "电池|价格|物流|音质|做工|说明书|客服|包装|重量|舒适度",
    ),
    kind(
        "外套|雨衣|毛衣|连衣裙|围巾|帽子|衬衫|双肩包|手提包|卫衣|泳衣|皮带",
        "尺寸|价格|物流|颜色|舒适度|气味|做工|客服|重量",
    ),
    kind("咖啡豆|绿茶|蜂蜜|巧克力|橄榄油|果酱|奶酪|辣酱|麦片|花生酱|橙汁|挂面", "味道|价格|物流|包装|气味|尺寸|客服"),
    kind(
        "台灯|办公椅|床垫|书架|枕头|地毯|窗帘|沙发|帐篷|自行车|行李箱|雨伞|瑜伽垫",
        "价格|物流|尺寸|颜色|舒适度|做工|气味|说明书|重量|客服|清洗",
    ),
    kind(
        "吸尘器|吹风机|电风扇|空气净化器|洗衣机|电钻|割草机|取暖器|缝纫机|电动牙刷",
        "噪音|价格|物流|做工|电池|重量|说明书|客服|清洗|尺寸",
    ),
]

ASPECTS_ZH = {
    "电池": phrases(
        "电池|续航|电量",
        "能撑好几天|用了一周还剩一半|出门两天都不用愁|很快就能充满|天冷也很稳|比宣传的还耐用|从没掉过链子",
        "半天就没了|放着不用也掉|一天要充两次|充一晚上都不满|半小时就不行了|比宣传的差远了|一个月就废了",
    ),
    "价格": phrases(
        "价格|价钱|这个价位",
        "很实惠|几乎找不到对手|真是捡到便宜了|比哪家都低|学生党也能接受|对得起这份品质|让人开心",
        "太坑了|高得离谱|我刚买完就变了，心里堵|是别家的两倍|没法让人接受|根本配不上这份品质|让人肉疼",
    ),
    "物流": phrases(
        "物流|快递|送货",
        "特别快|提前一天就到了|只用了一天|每一步都有通知|非常准时|比说好的还早|又快又客气",
        "等了三个星期|又晚了|丢了两次|什么通知都没有|送错了地址|比说好的晚太多|又慢又凶",
    ),
    "尺寸": phrases(
        "尺寸|大小|尺码",
        "刚刚好|和表上完全一致|很适合我们家|再合适不过了|和描述的一模一样|放在小房子里正好|正是我想要的",
        "完全不对|和表上对不上|我们家根本没法用|差得太多|和描述的两回事|放在小房子里很别扭|不是我订的那种",
    ),
    "噪音": phrases(
        "噪音|声响|运转的动静",
        "几乎没有|吵不醒孩子|比说话声还小|可以忽略|一直很轻|谁也打扰不到|一下就没了",
        "让人发疯|全家都被吵醒|像飞机起飞|听得头疼|一天比一天大|连邻居都来投诉|没完没了",
    ),
    "味道": phrases(
        "味道|口感|回味",
        "浓郁顺滑|好极了|像小时候吃过的|清爽干净|全家都喜欢|真的很香|怎么吃都不腻",
        "又苦又淡|差极了|像在嚼纸板|一点都不新鲜|全家都嫌弃|真的难以下咽|跟白水一样",
    ),
    "客服": phrases(
        "客服|售后|店家",
        "几分钟就回复了|很有礼貌地解决了问题|特别愿意帮忙|对我很有耐心|免费补寄了配件|沟通起来很愉快|说到做到",
        "一直不回复|直接挂我电话|从头到尾都很凶|一直踢皮球|就是不肯帮忙|沟通起来太累|说话不算数",
    ),
    "包装": phrases(
        "包装|盒子|外箱",
        "整齐又结实|把东西护得很好|像礼物一样|很容易打开|一点塑料都没用|封得很仔细|到手没有一点划痕",
        "都破了|什么也没护住|像垃圾一样|怎么都打不开|用了一大堆塑料|封得很马虎|到手全湿了",
    ),
    "气味": phrases(
        "气味|闻起来的感觉|散出来的味儿",
        "很好闻|清新淡雅|让房间都舒服了|很柔和|一小时就散了，没事|我很喜欢|不冲鼻",
        "太难闻|一股刺鼻的化学味|弄得满屋子都是|让人恶心|一个月都散不掉|我实在受不了|像烧焦的橡胶",
    ),
    "舒适度": phrases(
        "舒适度|用起来的感觉|体感",
        "像做梦一样|又软又轻松|比以前的都好|几个小时也不累|像在云上|让我的腰轻松多了|是种享受",
        "是种折磨|又硬又扎|比以前的都差|十分钟就疼|像块砖头|让我的腰更难受了|实在糟糕",
    ),
    "颜色": phrases(
        "颜色|色调|配色",
        "实物更漂亮|鲜亮干净|洗了好多次还很新|怎么搭都行|和图片一模一样|被好几个人夸|美极了",
        "实物暗很多|又脏又旧|掉得满手都是|怎么搭都怪|和图片完全两样|被好几个人笑|丑极了",
    ),
    "做工": phrases(
        "做工|质量|材质",
        "非常扎实|摔了三次都没事|用一年还像新的|用十年没问题|一点磨损都没有|拿着很结实|经得起折腾",
        "太单薄|第一次摔就裂了|一周就散架|撑不过这个夏天|已经磨坏了|像玩具一样|根本经不起用",
    ),
    "清洗": phrases(
        "清洗|清洁|打理",
        "一分钟搞定|小孩都会|湿布擦擦就行|一点不费事|比我想的容易|泡杯茶的工夫就完事|简单得很",
        "要一个小时|简直是噩梦|要三种工具还得靠运气|累死人|比我想的麻烦|每个角落都留着脏东西|烦得很",
    ),
    "说明书": phrases(
        "说明书|安装指南|使用手册",
        "讲得明明白白|五分钟就让我上手了|简短清楚|配图特别好|什么问题都解答了|跟着做很顺|让事情变简单了",
        "什么也没讲|害我折腾一晚上|乱七八糟|配的是别的型号的图|什么问题都没解答|根本看不懂|让事情更糟了",
    ),
    "重量": phrases(
        "重量|分量|拿起来的手感",
        "完全不是问题|小孩也没压力|像羽毛一样|出门带着正好|怎么都不累|让我惊喜|正合我意",
        "是个大问题|大人也吃不消|像搬砖一样|出门根本没法带|让人很累|让我后悔|压得肩膀疼",
    ),
    "音质": phrases(
        "音质|声音|音效",
        "清晰饱满|整个房间都好听|开大了也清楚|低音很棒|朋友听了都惊讶|比旧的那个好|像在现场",
        "又薄又尖|一直有杂音|开大了就破|一点低音都没有|朋友听了都笑|比旧的那个差|全是沙沙声",
    ),
}

INTROS_ZH = alternatives(
    "上周买的{p}。|给我妈买的{p}。|这款{p}从{month}用到现在。|{day}下单的{p}。|{who}想要这个{p}。|这是我买的第{n}个{p}。"
    "|这款{p}我们天天用。|说说这个{p}。|看了好久才选的{p}。|{p}用了{n}天，来写几句。|朋友推荐的{p}。|终于试了这款{p}。"
    "|{season}前需要，就买了这个{p}。|这款{p}，{n}周的感受。|在店里看到的{p}。"
)
BARE_ZH = alternatives("{s}{v}|{a}，{s}{v}|{a}{s}{v}|{s}嘛，{v}|最先注意到的是{s}{v}|{who}说{s}{v}")
FRAMES_ZH = alternatives(
    "这款{p}，{s}{v}|{p}的{s}{v}|这个{p}的{s}{v}|{a}，{p}的{s}{v}|{often}用{p}，{s}{v}|说下{p}吧，{s}{v}"
    "|{s}{v}，至少我这个{p}是这样|来评价{p}是因为{s}{v}"
)
FILLERS_ZH = alternatives(
    "现在放在{room}。|我今年{age}岁。|{who}也在用。|我们家{n}口人。|{day}试了一次，{day2}又试了一次。|目前就这些。|其他的跟预想的一样。"
    "|以前用的是别的牌子。|我的是{month}的那一版。|{month}再来追评。|在镇上的店里买的。|本来是为{season}准备的。|别的没什么好说的。"
    "|第一次写评价，短了点。|用了{who}给的券。|{room}里其他地方还空着哈哈。"
)
GOOD_ZH = alternatives(
    "还会再买。|五星！|非常满意。|强烈推荐。|太喜欢了。|谢谢！|买对了。|真不错。|继续保持。|已经又下单了一个。"
)
BAD_ZH = alternatives(
    "再也不买了。|一星。|非常失望。|大家别买。|我要退款。|太可惜了。|已经退了。|真差劲。|好好改改吧。|后悔了。"
)
ADVERBS_ZH = alternatives("说实话|老实说|我觉得|个人感觉|不得不说|讲真|总的来说|用下来|试过以后|就目前看")
SLOTS_ZH = {
    "month": alternatives("一月|二月|三月|四月|五月|六月|七月|八月|九月|十月|十一月|年底"),
    "day": alternatives("周一|周二|周三|周四|周五|周六|周日"),
    "day2": alternatives("第二天早上|周末|休息那天|下雨的晚上"),
    "who": alternatives("老公|老婆|姐姐|弟弟|爸爸|邻居|老板|女儿|儿子|室友|姑姑"),
    "n": alternatives("二|三|四|五|六|十"),
    "season": alternatives("夏天|冬天|秋天|春天|过年"),
    "room": alternatives("厨房|门厅|卧室|办公室|车库|客厅"),
    "age": alternatives("23|31|38|45|52|67|74"),
    "often": alternatives("每天|上班|在家|周末|晚上"),
}
